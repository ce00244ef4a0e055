# Unpacks the tar archive on stdin into the directory SANDHOLD_TARGET, which is made. What is there already and has another
# name stays. Ends with 75 or as tar does when the stream broke off: then a part has been unpacked.

LC_ALL=C
export LC_ALL
umask 022
mkdir -p "$SANDHOLD_TARGET" && cd -- "$SANDHOLD_TARGET" || exit 1
tar -xpof -
code=$?
# It does not read what may follow the end of the archive.
[ $code -ne 0 ] || cat >/dev/null
[ $code -ne 0 ] || [ -e "$SANDHOLD_WHOLE" ] || exit 75
exit $code
