"""``vmm verify``: whether what was offered in fw_cfg is what the guest found."""
