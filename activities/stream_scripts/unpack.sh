# Unpacks the tar archive on stdin into the directory SANDHOLD_TARGET, which is made. What is there already and has another
# name stays. Ends as tar does, which says on stderr what it could not unpack; with 75 when the stream broke off: then a
# part has been unpacked.

LC_ALL=C
export LC_ALL
umask 022
mkdir -p -- "$SANDHOLD_TARGET" && cd -- "$SANDHOLD_TARGET" || exit 1
set -- -xpof -
if tar --version 2>/dev/null | grep -q 'GNU tar'; then
    set -- --quoting-style=escape --delay-directory-restore --warning=no-timestamp -b 128 "$@"
fi
tar "$@"
code=$?
# It does not read what may follow the end of the archive. Only at the end of the stream is it known whether it is one.
if [ $code -eq 0 ] || [ "$(($(head -c 1 | wc -c)))" -eq 0 ]; then
    cat >/dev/null
    [ -e "$SANDHOLD_WHOLE" ] || exit 75
fi
exit $code
