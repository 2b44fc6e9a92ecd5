package catalog

import "context"

// supersede takes the record out that a rename to the image with entry e left
// over, if there is one.
func (c *Catalog) supersede(ctx context.Context, name string, e *Entry) {
	from := e.RenamedFrom
	c.mu.Lock()
	r := c.records[from]
	c.mu.Unlock()
	if r == nil || from == name || !c.leftOver(ctx, r, e) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.records[from] == r {
		c.replace(map[string]*record{from: nil})
		c.superseded[from] = successor{name, r}
	}
}

// leftOver reports whether r is what a rename to the image with entry e left
// over: the same image, not changed since.
func (c *Catalog) leftOver(ctx context.Context, r *record, e *Entry) bool {
	if r.entry.Key == "" {
		return FormatID(r.image.ID) == e.ID && e.adoptedFrom(r.image)
	}
	old, err := readEntry(ctx, c.store, r.entry)
	return err == nil && old.ID == e.ID && !old.Updated.After(e.Updated)
}
