"""Reports: the plots of a comparison (`swaa.report.plots`, needs matplotlib)."""
