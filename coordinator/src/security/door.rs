//! The door of a service: which token opens it, for whom, and what the others are told.

use std::sync::Arc;

use relabel_proto::security::AccessToken;
use tonic::service::Interceptor;
use tonic::{Code, Request, Status};

use super::guests::Guest;
use super::refusal::Refusals;

/// What a caller is to the coordinator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// One that trains or labels.
    Worker,
    /// One that asks how it is going, or ends it.
    Admin,
}

/// Which tokens there are.
#[derive(Debug, Default)]
pub(super) struct Policy {
    pub(super) join: Option<AccessToken>,
    pub(super) admin: Option<AccessToken>,
    /// Nobody but local workers has been given the join token.
    pub(super) only_children: bool,
}

/// Why a caller may not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Denial {
    code: Code,
    /// What the caller is told, after words such as "the coordinator refused this worker:".
    told: &'static str,
    /// What the log says.
    noted: &'static str,
}

const NO_JOIN_TOKEN: Denial = Denial {
    code: Code::Unauthenticated,
    told: "it lets in only workers that show its join token: name a file with it by --join-token-file, or set \
           RELABEL_JOIN_TOKEN",
    noted: "it showed no join token",
};
const WRONG_JOIN_TOKEN: Denial = Denial {
    code: Code::Unauthenticated,
    told: "this is not its join token: compare --join-token-file or RELABEL_JOIN_TOKEN with the coordinator's",
    noted: "it showed another join token",
};
const ADMIN_IS_NO_WORKER: Denial = Denial {
    code: Code::PermissionDenied,
    told: "this is its admin token: a worker shows the join token",
    noted: "it wanted to join with the admin token",
};
const ONLY_CHILDREN: Denial = Denial {
    code: Code::Unauthenticated,
    told: "it runs with --local and lets in only the workers that it has started: start it with --join-token-file to \
           let others in",
    noted: "only local workers may join without --join-token-file",
};
const NO_ADMIN_TOKEN: Denial = Denial {
    code: Code::Unauthenticated,
    told: "this takes its admin token: name a file with it by --admin-token-file, or set RELABEL_ADMIN_TOKEN",
    noted: "it showed no admin token",
};
const WRONG_ADMIN_TOKEN: Denial = Denial {
    code: Code::Unauthenticated,
    told: "this is not its admin token: compare --admin-token-file or RELABEL_ADMIN_TOKEN with the coordinator's",
    noted: "it showed another admin token",
};
const WORKER_IS_NO_ADMIN: Denial = Denial {
    code: Code::PermissionDenied,
    told: "this is a worker's join token: it takes the admin token",
    noted: "it asked for what is the operator's with a worker's token",
};
const NOT_ITS_USER: Denial = Denial {
    code: Code::PermissionDenied,
    told: "it has no admin token, and so takes this from its own user on its own machine only: start it with \
           --admin-token-file",
    noted: "only this user on this machine may ask for what is the operator's without --admin-token-file",
};

impl Policy {
    /// Whether a caller may. `is_own_user` says whether it is a process of this coordinator's user on this machine.
    fn judge(
        &self,
        role: Role,
        shown: Option<&str>,
        is_own_user: impl FnOnce() -> bool,
    ) -> Result<(), Denial> {
        let is = |token: &Option<AccessToken>| match (token, shown) {
            (Some(token), Some(shown)) => token.is(shown),
            _ => false,
        };
        match role {
            Role::Worker => match &self.join {
                None => Ok(()),
                Some(_) if is(&self.join) => Ok(()),
                Some(_) if is(&self.admin) => Err(ADMIN_IS_NO_WORKER),
                Some(_) if self.only_children => Err(ONLY_CHILDREN),
                Some(_) if shown.is_some() => Err(WRONG_JOIN_TOKEN),
                Some(_) => Err(NO_JOIN_TOKEN),
            },
            Role::Admin => match &self.admin {
                _ if is(&self.join) => Err(WORKER_IS_NO_ADMIN),
                Some(_) if is(&self.admin) => Ok(()),
                Some(_) if shown.is_some() => Err(WRONG_ADMIN_TOKEN),
                Some(_) => Err(NO_ADMIN_TOKEN),
                None if self.join.is_none() || is_own_user() => Ok(()),
                None => Err(NOT_ITS_USER),
            },
        }
    }
}

/// Looks at every call of one service before it is read.
#[derive(Clone)]
pub struct Doorkeeper {
    role: Role,
    policy: Arc<Policy>,
    refusals: Refusals,
}

impl Doorkeeper {
    pub(super) fn new(role: Role, policy: Arc<Policy>, refusals: Refusals) -> Self {
        Self { role, policy, refusals }
    }
}

impl Interceptor for Doorkeeper {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let guest = request.extensions().get::<Guest>();
        let is_own_user = || guest.is_some_and(Guest::is_own_user);
        match self.policy.judge(self.role, AccessToken::shown(request.metadata()), is_own_user) {
            Ok(()) => {
                if let Some(guest) = guest {
                    guest.admit();
                }
                Ok(request)
            }
            Err(Denial { code, told, noted }) => {
                self.refusals.note(guest.map(Guest::peer), noted, &"");
                Err(Status::new(code, told))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tonic::Code::{PermissionDenied, Unauthenticated};

    use super::*;

    const JOIN: &str = "the-token-of-workers";
    const ADMIN: &str = "the-token-of-the-operator";

    fn policy(join: bool, admin: bool) -> Policy {
        let token = |given: bool, text: &str| given.then(|| AccessToken::new(text, String::new).unwrap());
        Policy { join: token(join, JOIN), admin: token(admin, ADMIN), only_children: false }
    }

    fn code(policy: &Policy, role: Role, shown: Option<&str>, is_own_user: bool) -> Option<Code> {
        policy.judge(role, shown, || is_own_user).err().map(|denial| denial.code)
    }

    #[test]
    fn each_token_opens_its_own_door() {
        use Role::{Admin, Worker};
        let both = policy(true, true);
        for (role, shown, expected) in [
            (Worker, Some(JOIN), None),
            (Worker, Some(ADMIN), Some(PermissionDenied)),
            (Worker, Some("another-token-of-workers"), Some(Unauthenticated)),
            (Worker, Some(""), Some(Unauthenticated)),
            (Worker, Some(&JOIN[1..]), Some(Unauthenticated)),
            (Worker, None, Some(Unauthenticated)),
            (Admin, Some(ADMIN), None),
            (Admin, Some(JOIN), Some(PermissionDenied)),
            (Admin, Some("another-token-of-operators"), Some(Unauthenticated)),
            (Admin, None, Some(Unauthenticated)),
        ] {
            for is_own_user in [false, true] {
                assert_eq!(
                    code(&both, role, shown, is_own_user),
                    expected,
                    "{role:?} {shown:?} {is_own_user}"
                );
            }
        }
    }

    #[test]
    fn what_has_no_token_is_open_or_its_users_own() {
        use Role::{Admin, Worker};
        let open = policy(false, false);
        for (role, shown) in [(Worker, None), (Worker, Some("what")), (Admin, None), (Admin, Some("what"))] {
            assert_eq!(code(&open, role, shown, false), None);
        }
        let only_admin = policy(false, true);
        assert_eq!(code(&only_admin, Worker, None, false), None);
        assert_eq!(code(&only_admin, Admin, None, true), Some(Unauthenticated));

        let only_join = policy(true, false);
        assert_eq!(code(&only_join, Admin, None, true), None);
        assert_eq!(code(&only_join, Admin, None, false), Some(PermissionDenied));
        assert_eq!(code(&only_join, Admin, Some("what"), false), Some(PermissionDenied));
        assert_eq!(code(&only_join, Admin, Some(JOIN), true), Some(PermissionDenied));
    }

    #[test]
    fn the_refused_are_told_what_to_do() {
        let words = |policy: &Policy, role, shown| policy.judge(role, shown, || false).unwrap_err().told;
        let both = policy(true, true);
        for (role, shown, flag) in [
            (Role::Worker, None, "--join-token-file"),
            (Role::Worker, Some("another-token"), "RELABEL_JOIN_TOKEN"),
            (Role::Worker, Some(ADMIN), "a worker shows the join token"),
            (Role::Admin, None, "--admin-token-file"),
            (Role::Admin, Some("another-token"), "RELABEL_ADMIN_TOKEN"),
            (Role::Admin, Some(JOIN), "it takes the admin token"),
        ] {
            assert!(words(&both, role, shown).contains(flag), "{}", words(&both, role, shown));
        }
        let local = Policy { only_children: true, ..policy(true, false) };
        assert!(words(&local, Role::Worker, None).contains("--local"));
        assert!(words(&local, Role::Admin, None).contains("its own user"));
    }
}
