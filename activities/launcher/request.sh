# The last part of every program: carries out one request, and frames its answer.

sd_request=$1
shift
if [ "$sd_request" = own ]; then
    sd_own "$@"
    exit 0
fi
sd_nonce=$1 sd_stdout_window=$2 sd_stderr_window=$3
shift 3
sd_poll=
sd_clock
echo "<$sd_nonce $sd_now"
"sd_answer_$sd_request" "$@"
# A request that came first has moved the upload away.
[ "$SANDHOLD_UPLOAD" ] && rm -f "$SANDHOLD_UPLOAD"
echo "$sd_nonce>"
exit 0
