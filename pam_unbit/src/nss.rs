//! Enter: keeps glibc from loading NSS libraries of the tenant.
//!
//! In the container's mount namespace, glibc would load an NSS library from the tenant's file
//! system, into a process that is root (`join=now`) or that holds a socket to sshd's monitor
//! (sshd's child, when it resolves the host of a forwarding). So before the join this file sets
//! nsswitch.conf(5) for the process to libraries that are loaded already.
//!
//! It looks up no container: that is `nss_unbit`.

use crate::sys;
use join::refusal::{Context, Reason, Refusal};
use join::sys::retry;
use nix::unistd::User;
use shared::ContainerUid;
use std::ffi::CStr;

/// For sshd's child: allows those of `files unbit dns` that need no library, or whose library can
/// be loaded now.
pub fn pin_loaded() -> Result<(), Refusal> {
    let built_in = sys::glibc_version() >= (2, 34); // files and dns moved into libc itself
    let files = built_in || sys::load(c"libnss_files.so.2");
    let dns = built_in || sys::load(c"libnss_dns.so.2");
    let unbit = sys::load(c"libnss_unbit.so.2");
    match (files, unbit, dns) {
        (true, true, true) => configure(c"files unbit", c"files unbit dns", c"files"),
        (true, true, false) => configure(c"files unbit", c"files unbit", c"files"),
        (true, false, true) => configure(c"files", c"files dns", c"files"),
        (true, false, false) => configure(c"files", c"files", c"files"),
        (false, true, _) => configure(c"unbit", c"unbit", c"unbit"),
        (false, false, _) => Err(Refusal::new(Reason::Broken, "no NSS library can be loaded")),
    }
}

/// For an application that is still root inside: allows only our own library. Not even `files`,
/// which the tenant owns there.
pub fn pin_unbit_only(container: ContainerUid) -> Result<(), Refusal> {
    configure(c"unbit", c"unbit", c"unbit")?;
    match retry(|| User::from_uid(container.get().into())) {
        Ok(Some(user)) if user.uid.as_raw() == container.get() => Ok(()),
        _ => Err(Refusal::new(Reason::Misconfigured, "libnss_unbit.so.2 does not answer, and join=now needs it")),
    }
}

/// The databases of nsswitch.conf(5).
fn configure(accounts: &CStr, hosts: &CStr, others: &CStr) -> Result<(), Refusal> {
    let accounts = [c"passwd", c"group", c"shadow", c"gshadow", c"initgroups"].map(|database| (database, accounts));
    let others = [c"networks", c"protocols", c"services", c"ethers", c"rpc", c"netgroup", c"aliases", c"publickey"]
        .map(|database| (database, others));
    for (database, services) in accounts.into_iter().chain(others).chain([(c"hosts", hosts)]) {
        sys::configure_nss(database, services)
            .context(Reason::Broken, format_args!("pin NSS for {}", database.to_string_lossy()))?;
    }
    Ok(())
}
