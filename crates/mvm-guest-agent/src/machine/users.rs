//! Whom a command runs as: `/etc/passwd` and `/etc/group`, read as files.
//!
//! A static binary cannot use the C library's name service, and a guest's users are in these files.

use super::proc;
use rustix::thread::{Gid, Uid};
use std::path::Path;

/// The largest user or group file that is read, in bytes.
const MAX_FILE: u64 = 1024 * 1024;

/// A user as the kernel needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) name: String,
    pub(crate) home: String,
    pub(crate) uid: Uid,
    pub(crate) gid: Gid,
    /// Supplementary groups.
    pub(crate) groups: Vec<Gid>,
}

/// Looks a user up by name or number, in the folder `etc`.
pub(crate) fn look_up(etc: &Path, user: &str) -> Result<Identity, String> {
    let passwd = proc::read(etc.join("passwd"), MAX_FILE)
        .map_err(|error| format!("user `{user}`: {}: {error}", etc.join("passwd").display()))?;
    let number = id(user);
    let found = passwd.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, uid, gid, _, home, ..] = fields.as_slice() else {
            return None;
        };
        let uid = id(uid)?;
        let matches = *name == user || number == Some(uid);
        matches.then_some((*name, uid, id(gid)?, *home))
    });
    let (name, uid, gid, home) = match (found, number) {
        (Some(found), _) => found,
        // As in container runtimes: a number needs no entry, and has the group of that number.
        (None, Some(number)) => (user, number, number, "/"),
        (None, None) => {
            return Err(format!(
                "no user `{user}` in {}",
                etc.join("passwd").display()
            ));
        }
    };
    // Without a group file nobody is in a supplementary group.
    let groups = proc::read(etc.join("group"), MAX_FILE).unwrap_or_default();
    let groups = groups.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [_, _, gid, members, ..] = fields.as_slice() else {
            return None;
        };
        members
            .split(',')
            .any(|member| member == name)
            .then_some(())?;
        id(gid).map(Gid::from_raw)
    });
    let gid = Gid::from_raw(gid);
    let mut all = vec![gid];
    all.extend(groups.filter(|group| *group != gid));
    Ok(Identity {
        name: name.to_owned(),
        home: home.to_owned(),
        uid: Uid::from_raw(uid),
        gid,
        groups: all,
    })
}

/// A user's or group's number. The largest is none: to the kernel it says that the number stays what
/// it is, and the command would run as the agent (setresuid(2)).
fn id(text: &str) -> Option<u32> {
    text.parse().ok().filter(|number| *number != u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn etc() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbroken\nweb:x:1000:1001:,:/srv/web:/bin/sh\n";
        let group = "root:x:0:\ndata:x:50:other,web\nweb:x:1001:web\nwebx:x:60:webx\n";
        std::fs::write(dir.path().join("passwd"), passwd).unwrap();
        std::fs::write(dir.path().join("group"), group).unwrap();
        dir
    }

    #[test]
    fn a_user_has_its_own_groups() {
        let etc = etc();
        let web = look_up(etc.path(), "web").unwrap();
        assert_eq!((web.uid.as_raw(), web.gid.as_raw()), (1000, 1001));
        assert_eq!(web.home, "/srv/web");
        assert_eq!(web.groups, [1001, 50].map(Gid::from_raw));
        assert_eq!(look_up(etc.path(), "1000").unwrap(), web);
        let number = look_up(etc.path(), "4000").unwrap();
        assert_eq!((number.uid.as_raw(), number.gid.as_raw()), (4000, 4000));
    }

    #[test]
    fn the_uid_that_means_no_change_is_refused() {
        let etc = etc();
        let passwd = "all:x:4294967295:0::/:\nof-all:x:7:4294967295::/:\n";
        std::fs::write(etc.path().join("passwd"), passwd).unwrap();
        for user in ["4294967295", "all", "of-all"] {
            let error = look_up(etc.path(), user).unwrap_err();
            assert!(error.contains("no user"), "{error}");
        }
    }

    #[test]
    fn an_unknown_user_is_named() {
        let error = look_up(etc().path(), "nemo").unwrap_err();
        assert!(error.contains("no user `nemo`"), "{error}");
        let error = look_up(Path::new("/nonexistent"), "web").unwrap_err();
        assert!(error.contains("/nonexistent/passwd"), "{error}");
    }
}
