//! Where VMs are looked for, and VMs before they are looked at: reading the records of ten thousand takes
//! a while, in which those that were read first can be dialled already.

use super::{Inventory, Listing, UnreadableDir, Vm, discovered_unreadable};
use crate::{Endpoint, Error, VmName};
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
    /// All VMs in name order. Of two with one name that in `$MVM_HOME` stands, or the one that the
    /// first pattern of the settings found.
    ///
    /// # Errors
    ///
    /// [`Error::NoInventory`] if there is no folder that could be looked at.
    pub fn list(&self) -> Result<Listing, Error> {
        let Candidates {
            candidates,
            mut unreadable,
        } = self.candidates()?;
        let vms = candidates.into_iter().filter_map(|one| self.look(one));
        let vms: Vec<_> = vms.collect();
        self.is_inventory(vms.is_empty(), &mut unreadable)?;
        Ok(Listing { vms, unreadable })
    }

    /// Those alone that the settings' patterns find. One of the name of a VM in `$MVM_HOME` is listed,
    /// too.
    pub fn strangers(&self) -> Listing {
        let (mut vms, mut unreadable) = (BTreeMap::new(), Vec::new());
        self.discovered(&mut vms, &mut unreadable);
        Listing {
            vms: vms.into_values().collect(),
            unreadable,
        }
    }

    fn discovered(&self, vms: &mut BTreeMap<String, Vm>, unreadable: &mut Vec<UnreadableDir>) {
        for pattern in &self.settings.discover {
            let mut names = Vec::new();
            if let Err(source) = pattern.names(&mut names) {
                unreadable.push(discovered_unreadable(pattern, source));
            }
            for name in names.into_iter().filter(|name| VmName::new(name).is_ok()) {
                let endpoint = Endpoint::unix(pattern.path_of(&name));
                vms.entry(name.clone())
                    .or_insert_with(|| Vm::stranger(&name, endpoint));
            }
        }
    }

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
        self.is_inventory(candidates.is_empty(), &mut unreadable)?;
        Ok(Candidates {
            candidates,
            unreadable,
        })
    }

    /// An error if nothing was found, and no folder could be looked at.
    pub(super) fn is_inventory(
        &self,
        is_empty: bool,
        unreadable: &mut Vec<UnreadableDir>,
    ) -> Result<(), Error> {
        if is_empty && unreadable.len() > self.settings.discover.len() {
            let UnreadableDir { path, source, .. } = unreadable.swap_remove(0);
            return Err(Error::NoInventory { path, source });
        }
        Ok(())
    }

    /// The VM, unless it is none, or has gone meanwhile. Of two with one name it is that in `$MVM_HOME`.
    pub fn look(&self, candidate: Candidate) -> Option<Vm> {
        let own = candidate.own.as_ref();
        let own = own.and_then(|name| self.own(name).ok().flatten());
        own.or(candidate.stranger)
    }
}
