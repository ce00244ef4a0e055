# Takes git's credential out of the sandbox.
#
#   SANDHOLD_HOST      whom it was for
#   SANDHOLD_FOR_GOOD  `yes` when git's settings go as well
#
# Answers `late yes` when nothing was done; else `removed yes`, or `failed WHY`.

remove() {
    own_folder "$ours" || { tell failed folder; return; }
    is_latest || { tell late yes; return; }
    remove_files hosts.yml
    if [ -e "$memory/hosts.yml" ] || [ -e "$ours/hosts.yml" ]; then
        tell failed file
        return
    fi
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
