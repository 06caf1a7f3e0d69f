"""The pages of the site that nobody writes: of docstrings, the list of rules, files elsewhere.

Nothing here needs Sphinx, so that tests read the pages without it; `site_build` hands them over.
"""
