"""Questions, passages, and the files they live in; the generated encyclopedia SynthWiki."""
