"""What people see of a study and of a compressed model: tables, plots, bars and the report file."""
