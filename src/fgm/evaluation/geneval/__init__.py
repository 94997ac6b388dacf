"""GenEval (Ghosh et al., arXiv 2310.11513): does the image show what the prompt names?

    fgm.data.text.geneval      what is asked:   metadata in the schema of evaluation_metadata.jsonl
    layout                what is drawn:   <dir>/<index>/samples/<k>.png, complete or refused
    detections            what is seen:    boxes from a detector, or from a file that another tool wrote
    rules                 what is right:   the official rules, quirks included
    results, scores       what is told:    results.jsonl, and the mean of the tags' means with its interval
    evaluate              all of it in a row

mask2former and clip_colour see with published weights that the user holds; they alone need transformers. A score from
another detector than the official one compares within this suite and not with published tables, so the protocol that
travels with it names the detector.
"""
