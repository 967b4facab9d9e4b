//! Checks the clock: the routers accept a signed subscription only if its time is right within
//! seconds.

use crate::report::Finding;
use crate::rootfs::RootFs;
use crate::sys;

const CHECK: &str = "time";
const WHY: &str = "signed subscriptions carry a time, and routers refuse one that is too old: replayed, or from a clock that is wrong";

pub fn check(node: &RootFs) -> Vec<Finding> {
    if !node.is_running() {
        return vec![Finding::not_applicable(CHECK, WHY, "a root directory has no clock")];
    }
    vec![judge(sys::is_clock_synchronised())]
}

fn judge(synchronised: nix::Result<bool>) -> Finding {
    match synchronised {
        Ok(true) => Finding::ok(CHECK, WHY, "the kernel's clock is synchronised"),
        Ok(false) => Finding::fail(CHECK, WHY, "the kernel's clock is not synchronised (adjtimex: STA_UNSYNC)", FIX),
        Err(errno) => Finding::not_applicable(CHECK, WHY, format!("adjtimex: {errno}")),
    }
}

const FIX: &str = "\
apt-get install systemd-timesyncd
(chrony does as well, with the line rtcsync in chrony.conf, and ntpsec); some minutes later check again";
