#!/bin/busybox sh
# /init of the Linux that reports: sends what the kernel found to the host over COM1, then powers off by ACPI.
#
# The stream: "VMM-LINUX 1", then for each file a line "FILE <bytes> <path>", the bytes, a newline; at last "END".
# What the kernel prints comes on the same serial port, before the stream and after it.

/bin/busybox mkdir -p /proc /sys /dev /tmp
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev 2>/dev/null

# Large items are told by their size and their beginning: the driver starts every page of a read at the item's first
# byte (fw_cfg_read_blob in drivers/firmware/qemu_fw_cfg.c), so that reading costs the square of the size.
LIMIT=131072

insmod /qemu_fw_cfg.ko >/tmp/insmod 2>&1

# From here on the kernel is silent, or its messages would be in the middle of the stream.
echo 1 >/proc/sys/kernel/printk
exec 3>/dev/ttyS0
stty -F /dev/ttyS0 raw

send() { # path as it is told, file that has the bytes
  echo "FILE $(wc -c <"$2") $1" >&3
  cat "$2" >&3
  echo >&3
}

copy() { # sends a file that can only be read once
  head -c $LIMIT "$1" >/tmp/copy 2>/dev/null
  send "$1" /tmp/copy
}

echo >&3
echo "VMM-LINUX 1" >&3
dmesg -r >/tmp/dmesg
send dmesg /tmp/dmesg
grep -r . /sys/firmware/memmap >/tmp/memmap
send memmap /tmp/memmap
nproc >/tmp/nproc
send nproc /tmp/nproc
send insmod /tmp/insmod
# What the kernel makes of the processors and of NUMA, by the shell alone: a program for each file takes long.
for cpu in /sys/devices/system/cpu/cpu[0-9]*; do
  package=- die=- core=- # those that are not there at boot have none
  read -r package 2>/dev/null <$cpu/topology/physical_package_id
  read -r die 2>/dev/null <$cpu/topology/die_id
  read -r core 2>/dev/null <$cpu/topology/core_id
  echo "${cpu##*/cpu} $package $die $core"
done >/tmp/topology 2>/dev/null
send topology /tmp/topology
grep -E '^(processor|apicid)' /proc/cpuinfo >/tmp/apicids
send apicids /tmp/apicids
for node in /sys/devices/system/node/node[0-9]*; do
  cpus= memory=- distances=-
  for cpu in $node/cpu[0-9]*; do
    [ -e $cpu ] && cpus=$cpus,${cpu##*/cpu}
  done
  read -r _ _ _ memory _ <$node/meminfo
  read -r distances <$node/distance
  echo "${node##*/node} ${cpus:-,} $memory $distances"
done >/tmp/nodes 2>/dev/null
send nodes /tmp/nodes
# Of memory, the bytes of a block (in hex) and the blocks that there are.
read -r size 2>/dev/null </sys/devices/system/memory/block_size_bytes
echo $size /sys/devices/system/memory/memory[0-9]* >/tmp/blocks
send blocks /tmp/blocks
uname -r >/tmp/uname
send uname /tmp/uname
for table in $(find /sys/firmware/acpi/tables /sys/firmware/dmi/tables -type f 2>/dev/null); do
  copy "$table"
done
cd /sys/firmware/qemu_fw_cfg/by_key 2>/dev/null && for key in *; do
  name=/sys/firmware/qemu_fw_cfg/by_key/$key
  copy "$name/name"
  copy "$name/size"
  copy "$name/raw"
done
echo END >&3
stty -F /dev/ttyS0 raw # waits until everything is out (TCSADRAIN)
poweroff -f
