#!/usr/bin/env bash
# A batch queue in a folder ($FAKE_QUEUE), under whichever of its commands' names this is called. A job is a process group.
cd "$FAKE_QUEUE" || exit 1
case ${0##*/} in
qsub | bsub)
    [ -e closed ] && echo "the queue is closed" >&2 && exit 1
    number=$(($(find . -name 'job-*' | wc -l) + 1))
    cat "${1:-/dev/stdin}" >"script-$number"
    setsid bash "script-$number" >"output-$number" 2>&1 </dev/null &
    echo $! >"job-$number"
    echo "Job <$number>.fake"
    ;;
qstat | bjobs)
    for job in job-*; do
        kill -0 -- "-$(cat "$job")" 2>/dev/null && echo "${job#job-}.fake $USER R"
    done
    exit 0
    ;;
qdel | bkill)
    kill -KILL -- "-$(cat "job-$1")"
    ;;
esac
