busybox mount -t ext4 -o ro /dev/vda /disk
busybox ifconfig lo up
busybox ifconfig eth0 ADDRESS netmask 255.255.255.0
clock=$(busybox cat /sys/devices/system/clocksource/clocksource0/current_clocksource)
features=$(busybox cat /sys/class/net/eth0/device/features)
echo "bench-info: Linux $(busybox uname -r), clock $clock, network features $features"
nginx -c /nginx.conf && echo "serving http://ADDRESS/"
while true; do busybox sleep 1000; done
