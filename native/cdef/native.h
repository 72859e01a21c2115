/* What the generated binding of vmm._native includes. */
#include <stdbool.h>
#include <stdint.h>

#include "vmm/chips.h"
#include "vmm/coverage.h"
#include "vmm/debugcon.h"
#include "vmm/exit_times.h"
#include "vmm/flash.h"
#include "vmm/fw_cfg.h"
#include "vmm/guest_memory.h"
#include "vmm/hpet.h"
#include "vmm/io_table.h"
#include "vmm/kvm_abi.h"
#include "vmm/pages.h"
#include "vmm/pci_config.h"
#include "vmm/pm_timer.h"
#include "vmm/profile.h"
#include "vmm/python_device.h"
#include "vmm/sandbox.h"
#include "vmm/trace.h"
#include "vmm/vcpu_run.h"
#include "vmm/vhost_user.h"
#include "vmm/virtio_blk.h"
