# What differs between two runs of tests/demo: sed -Ef tests/demo.sed
# Numbers of namespaces and processes, dates, times, sizes and keys; ssh ends its lines with a carriage return.
s/\r$//
s/\[[0-9]{10}\]/[NUMBER]/g
s/( +)[0-9]+( \?  +[0-9:]{8} (ps|sshd|sleep|sshd-session)$)/\1PID\2/
s/\b(pid|pid 1 is process) [0-9]+/\1 PID/g
s/(drwxr-xr-x|lrwxrwxrwx) .* ([A-Z][a-z]{2} [ 0-9]{2} [0-9:]{5})/\1 ... DATE/
s/SHA256:[A-Za-z0-9+/]{43}/SHA256:FINGERPRINT/
s/(verified in|closed after) [0-9.]+ (ms|s)/\1 TIME/
# The columns of `unbitctl list` after the number of sessions, whose limits depend on the machine's controllers.
s/^(  UID  ENGINE  STATE    SESSIONS) .*/\1/
s/^(3000[01]  uwsgi   running         [0-9]) .*/\1/
# The layout of cgroups, which is the machine's.
/^[0-9]+:[^ ]*:\/3000[01]$/d
s/cgroups [^;]*;/cgroups CGROUPS;/
s|/sys/fs/cgroup/([a-z]+/)?web1|/sys/fs/cgroup/web1|g
