"""GenEval (Ghosh et al., arXiv 2310.11513): does an image show what its prompt asks for?

    fgm.data.geneval   the prompts: metadata in the schema of evaluation_metadata.jsonl
    rules              when an image is correct: the official rules with their quirks
    detections         boxes in an image, from a detector or from a file that another tool wrote
    detectors          Mask2Former and CLIP colors with published weights that users provide; they need transformers
    metric             GenEval as a torchmetrics.Metric, and as a suite of fgm's own evaluations
    folder             <dir>/<index>/samples/<k>.png: export, grades as results.jsonl, scores

Scores of another detector than the official one compare only within this suite and not with published tables, so the
protocol of every score names the detector.
"""
