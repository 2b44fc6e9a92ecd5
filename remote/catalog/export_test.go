package catalog

import "time"

// SetPatience sets how long a name waits for a first listing.
func (c *Catalog) SetPatience(d time.Duration) { c.patience = d }
