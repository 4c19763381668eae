"""An evaluation as JSON, tables, figures and a page."""
