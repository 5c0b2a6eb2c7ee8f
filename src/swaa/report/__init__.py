"""What is made of results: the plots of a comparison, and the web page of `swaa report`.

`plots` needs matplotlib, `html` needs jinja2 (extras `demo` and `report`); everything else here needs neither.
"""
