"""What firmware is handed: the contents of fw_cfg and fwctl, the tables, a kernel."""
