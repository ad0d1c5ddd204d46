"""Pages of HTML that stand alone: no script, font or picture is fetched from anywhere."""
