//! Runs what is due in the caller's own time instead of in the background, for tests and one-shot programs.

use std::time::Duration;

use pensum_core::StoreError;
use pensum_core::store::ClaimRequest;

use crate::{Engine, claim, completer, intake};

/// Most overdue tasks that one call ends.
const REAP_MAX: usize = 1_000;

impl Engine {
    /// Runs every task that can be claimed now, one after another in claim order, those included that become
    /// claimable by it, and answers how many runs that were. For an engine that is not [started](Engine::start): nothing
    /// renews leases or watches timeouts meanwhile.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn run_due(&self) -> Result<usize, StoreError> {
        while self.store().has_intake() && intake::pass(self, Duration::ZERO).await?.more {}
        self.store().reap(self.now(), REAP_MAX).await?;
        let mut runs = 0;
        loop {
            let request = ClaimRequest {
                capabilities: Some(self.capabilities()),
                queues: self.queues(),
                resources: self.offered(),
                ..ClaimRequest::new(self.node().id, self.node().name.clone(), 1, self.lease())
            };
            let sent = self.now();
            let claimed = self.store().claim(request, sent).await?;
            if claimed.is_empty() {
                return Ok(runs);
            }
            runs += claimed.len();
            claim::take(self, claimed, sent);
            completer::drain(self).await;
        }
    }
}
