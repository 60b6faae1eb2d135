# Acts out the plan of one task, and writes down in a file of its own what it did, where no store can lie about it.
# Usage: act.sh DIRECTORY ROLE COUNT SECONDS
dir=$1 role=$2 count=$3 seconds=$4

# Twelve digits of a random UUID: a number that no other run has.
read -r uuid < /proc/sys/kernel/random/uuid
rest=${uuid#*-}
run=$((0x${uuid%%-*}${rest%%-*}))

say() {
    echo "$1 $run $PENSUM_TASK_ID $PENSUM_ATTEMPT $PPID $(date +%s%N)" >> "$dir/effects"
}

finish() {
    say done
    echo "{\"run\": $run}"
    exit 0
}

say runs
case $role in
    work)
        sleep "$seconds"
        finish
        ;;
    fail)
        sleep "$seconds"
        [ "$PENSUM_ATTEMPT" -gt "$count" ] && finish
        say failed
        exit 1
        ;;
    panic)
        [ "$PENSUM_ATTEMPT" -gt "$count" ] && finish
        say panicked
        kill -USR1 $$
        ;;
    hang)
        sleep 600
        ;;
    stubborn)
        trap '' TERM
        sleep "$seconds"
        finish
        ;;
    deadly)
        echo >> "$dir/deaths-$PENSUM_TASK_ID"
        [ "$(wc -l < "$dir/deaths-$PENSUM_TASK_ID")" -gt "$count" ] && finish
        sleep 0.05
        # A process that has lost its node has another parent by now: only a node of this test names the directory.
        grep -aqF -- "$dir" "/proc/$PPID/cmdline" && kill -9 "$PPID"
        sleep 600
        ;;
esac
