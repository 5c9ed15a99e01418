"""One line that says what is wrong with the settings and names the nearest valid one."""
