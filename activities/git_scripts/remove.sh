# Takes git's credential out of the sandbox.
#
#   SANDHOLD_HOST      whom it was for
#   SANDHOLD_FOR_GOOD  `yes` when git's settings go as well
#
# Answers `late yes` when nothing was done; else `removed yes`, or `failed WHY`.

remove() {
    # Neither a folder that is not ours any more nor a full disk keeps the file in place.
    if own_folder "$ours"; then
        is_late && { tell late yes; return; }
        note_number || rm -f -- "$ours/number.$$"
    fi
    remove_files hosts.yml
    for folder in "$memory" "$ours"; do
        [ ! -L "$folder" ] && [ -e "$folder/hosts.yml" ] && { tell failed file; return; }
    done
    gh_is_ours && rm -f -- "$gh"
    if [ "$SANDHOLD_FOR_GOOD" = yes ] && command -v git >/dev/null; then
        configure --unset-all "$key" "$pattern"
        configure --unset-all "$key" '^$'
    fi
    tell removed yes
}

echo "<$SANDHOLD_NONCE"
remove
echo "$SANDHOLD_NONCE>"
