//! The limit on removals in one round: an API that answers with half a list, or none, must not stop
//! a node's containers.
//!
//! It keeps no state on purpose. An API that is wrong once is often wrong for minutes, so the same
//! answer again would prove nothing. The operator has to allow the removal.

/// Whether the removal must be blocked: it is all of several, or more than 3 and more than a tenth,
/// and the operator has not allowed it.
pub fn blocks(going: usize, all: usize, is_allowed: bool) -> bool {
    !is_allowed && (going > 3.max(all / 10) || going == all && all > 1)
}

/// The message about a removal that was blocked.
pub fn message(going: usize, all: usize, what: &str, job: &str) -> String {
    format!(
        "{going} of {all} {what} would be removed at once, so none is; to see which: unbit-agent once {job} --dry-run --allow-removal; \
        to allow it: unbit-agent once {job} --allow-removal"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_names_the_next_step() {
        let said = message(6, 7, "domains", "domains");
        assert!(said.starts_with("6 of 7 domains would be removed at once, so none is; "), "{said}");
        assert!(
            said.ends_with("unbit-agent once domains --allow-removal") && said.contains("--dry-run --allow-removal")
        );
    }

    #[test]
    fn three_or_a_tenth_may_go_but_not_all_of_several() {
        let few = [(0, 0, false), (1, 1, false), (1, 2, false), (2, 2, true), (2, 3, false), (3, 3, true)];
        let many = [(3, 4, false), (4, 4, true), (3, 39, false), (4, 39, true), (4, 40, false)];
        for (going, all, is_blocked) in few.into_iter().chain(many) {
            assert_eq!(blocks(going, all, false), is_blocked, "{going} of {all}");
        }
        assert!(blocks(101, 1000, false) && !blocks(100, 1000, false) && !blocks(1000, 1000, true));
    }
}
