"""One file a codec; the file's name is the name in `cache: {codec: NAME}`."""
