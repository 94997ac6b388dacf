"""Images as bytes: quantised one way, as whole PNGs, as folders of PNGs that are alike."""
