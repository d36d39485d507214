"""Where recipes get data from: files by path, or sets that install offline. Files are not trusted."""
