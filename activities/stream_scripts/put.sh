# In: makes the uploaded file SANDHOLD_UPLOAD the part SANDHOLD_NUMBER of the spool SANDHOLD_SPOOL; when it is not there,
# an earlier request has. With SANDHOLD_LAST there are so many parts, and the end is waited for; without it, that there
# is room for another part: "room".

if [ -e "$SANDHOLD_UPLOAD" ]; then mv "$SANDHOLD_UPLOAD" "$SANDHOLD_SPOOL/part.$SANDHOLD_NUMBER"; fi
if [ "$SANDHOLD_LAST" ]; then printf '' >"$SANDHOLD_SPOOL/last.$SANDHOLD_LAST"; fi
ss_came() {
    ss_news=room
    [ -z "$SANDHOLD_LAST" ] && [ -z "$ss_state" ] &&
        [ ! -e "$SANDHOLD_SPOOL/part.$((SANDHOLD_NUMBER + 1 - SANDHOLD_PARTS))" ]
}
ss_answer_when_it_came 1
