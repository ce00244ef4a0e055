# Out: removes the part SANDHOLD_TAKEN of the spool SANDHOLD_SPOOL, and waits until part SANDHOLD_WANTED is there:
# "part BYTES".

rm -f "$SANDHOLD_SPOOL/part.$SANDHOLD_TAKEN"
ss_came() {
    [ -e "$SANDHOLD_SPOOL/part.$SANDHOLD_WANTED" ] &&
        ss_news="part $(($(wc -c <"$SANDHOLD_SPOOL/part.$SANDHOLD_WANTED")))"
}
ss_answer_when_it_came "$SANDHOLD_WANTED"
