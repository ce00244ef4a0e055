# The last part of a request's program: carries out one request, and frames its answer.

sd_request=$1 sd_nonce=$2 sd_stdout_window=$3 sd_stderr_window=$4
shift 4
sd_poll=
sd_clock
echo "<$sd_nonce $sd_now"
"sd_answer_$sd_request" "$@"
# A request that came first has moved the upload away.
[ "$SANDHOLD_UPLOAD" ] && rm -f "$SANDHOLD_UPLOAD"
echo "$sd_nonce>"
exit 0
