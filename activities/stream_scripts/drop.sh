# Removes the spools SANDHOLD_SPOOL, one a line, and answers "dropped". Whoever still works with one ends by itself.

printf '%s\n' "$SANDHOLD_SPOOL" | while read -r ss_spool; do
    case $ss_spool in */.sandhold/streams/?*) rm -rf "$ss_spool" ;; esac
done
ss_answer dropped
