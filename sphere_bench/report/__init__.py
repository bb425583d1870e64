"""The report: tables and figures of one or several runs, from their folders alone."""
