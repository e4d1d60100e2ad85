echo none >/sys/block/vda/queue/scheduler
echo "bench-info: Linux $(busybox uname -r), features $(busybox cat /sys/bus/virtio/devices/virtio0/features)"
fio --output-format=terse --terse-version=3 /jobs.fio | busybox awk -F ';' '
    $5 != 0 { print "fio: " $0; next }
    {
        split($3, job, "-")
        write = job[1] ~ /^write/ ? 41 : 0
        sample = "bench-sample: linux|" job[1] "|" job[2] "|"
        print sample "throughput|requests/s|" $(8 + write)
        printf "%slatency|ns|%.0f\n", sample, 1000 * $(40 + write)
    }'
echo bench-done
busybox printf '\020' | busybox dd of=/dev/port bs=1 seek=244 2>/dev/null
