#!/bin/busybox sh
busybox mount -t devtmpfs dev /dev
busybox mount -t proc proc /proc
busybox mount -t sysfs sys /sys
exec >/dev/ttyS0 2>&1
for module in MODULES; do busybox insmod /$module.ko; done
