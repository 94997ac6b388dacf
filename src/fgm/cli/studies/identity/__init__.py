"""The gap between FGM's gradient and the one that it stands for, while the online network is not yet fitted.

J(theta) = E w |u - v_theta|^2 is what should become small. At a generator held where it is, let v = v_theta + e be the
online network, e any function of x_t and t, delta = u - v_theta, and all weights inside u, v, e and delta be fixed:
grad E w f(x_t) moves x_t alone. dv is the derivative of v_theta by theta, at x_t fixed. From

    L_1 + L_2 = |u - c|^2 - |v - c|^2    and    grad E w <f, v_theta - c> = -E w <f, dv>,

the flow product identity differentiated, follows

    grad E w (L_1 + L_2)             =  grad J + 2 E w <e, dv> - grad E w |e|^2                                   (1)
    grad E w (lambda_1 L_1 + L_2)    =  (1) + (lambda_1 - 1) grad E w |delta - e|^2                               (2)

L_1 + L_2 errs to first order in e; every other mixture misses (lambda_1 - 1) grad E w |delta|^2 besides, also where
e = 0. To second order in e stands (lambda_1 - 2) grad E w |e|^2: for an e that is mere noise of training, whose first
order averages out, L_2 alone errs twice as much as L_1 + L_2.

But an online network that starts as the teacher lags, and then e points to delta. With A = grad E w |delta|^2 and
B = -2 E w <delta, dv>, grad J = A + B. Where v has come a share s of the straight way, v = u - s delta and
e = (1 - s) delta, so that by (1) and (2)

    grad E w (lambda_1 L_1 + L_2)  =  s (B + (2 - (2 - lambda_1) s) A)                                            (3)

whose direction is that of grad J for

    lambda_1 = 2 - 1 / s,     SiD's alpha = 1 / (2 s)                                                             (4)

that is 1 for a fitted network, 0 (FGM on CIFAR-10) half way, -0.4 (SiD's best, alpha = 1.2) at s = 5/12. The weight of
A is off by 1 - s in L_1 + L_2 and by |1 - 2 s| in L_2: L_1 harms until s = 2/3. In the fit error

    E w |v - v_theta|^2 / E w |u - v_theta|^2  =  (1 - s)^2                                                       (5)

that is above 1/9. Derived here; tests/test_identity.py has (1), (3), (4) and (5) to rounding. How far networks that are
trained lag, and how far they err otherwise, `make study-identity` measures.
"""
