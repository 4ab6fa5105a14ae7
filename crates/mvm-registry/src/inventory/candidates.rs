//! VMs before they are looked at: reading the records of ten thousand takes a while, in which those that
//! were read first can be dialled already.

use super::{Inventory, UnreadableDir, Vm};
use crate::{Error, VmName};
use std::collections::BTreeMap;

/// What may be a VM.
#[derive(Debug)]
pub struct Candidate {
    /// Its name.
    pub name: String,
    /// Whether there is a folder of that name in `$MVM_HOME`.
    own: Option<VmName>,
    /// What a pattern of the settings has found.
    stranger: Option<Vm>,
}

/// What was found where VMs are looked for.
#[derive(Debug)]
pub struct Candidates {
    /// In name order.
    pub candidates: Vec<Candidate>,
    /// Where there may be more.
    pub unreadable: Vec<UnreadableDir>,
}

impl Inventory {
    /// All that may be VMs: what [`Inventory::list`] looks at.
    ///
    /// # Errors
    ///
    /// [`Error::NoInventory`] if there is no folder that could be looked at.
    pub fn candidates(&self) -> Result<Candidates, Error> {
        let (mut strangers, mut unreadable) = (BTreeMap::new(), Vec::new());
        let mut names = Vec::new();
        if let Err(source) = self.own_names(&mut names) {
            unreadable.push(self.own_unreadable(source));
        }
        self.discovered(&mut strangers, &mut unreadable);
        let own = names.into_iter().map(|name| {
            let stranger = strangers.remove(name.as_str());
            Candidate {
                name: name.as_str().to_owned(),
                own: Some(name),
                stranger,
            }
        });
        let mut candidates: Vec<_> = own.collect();
        candidates.extend(strangers.into_values().map(|vm| Candidate {
            name: vm.name.clone(),
            own: None,
            stranger: Some(vm),
        }));
        candidates.sort_by(|a, b| a.name.cmp(&b.name));
        if candidates.is_empty() && unreadable.len() > self.settings.discover.len() {
            let UnreadableDir { path, source, .. } = unreadable.swap_remove(0);
            return Err(Error::NoInventory { path, source });
        }
        Ok(Candidates {
            candidates,
            unreadable,
        })
    }

    /// The VM, unless it is none, or has gone meanwhile. Of two with one name it is that in `$MVM_HOME`.
    pub fn look(&self, candidate: Candidate) -> Option<Vm> {
        let own = candidate.own.as_ref();
        let own = own.and_then(|name| self.own(name).ok().flatten());
        own.or(candidate.stranger)
    }
}
