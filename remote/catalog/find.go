package catalog

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"imagefs/remote"
)

// Before the store was listed, a name is looked for by itself: its entry, what
// may hide objects of that name, and those objects, in the order in which a
// listing sees them. That takes four questions, and two more where numbered
// objects may make it up or it may be such an object.

// Exists reports whether there is an image of that name. It does I/O before
// the first listing only.
func (c *Catalog) Exists(ctx context.Context, name string) (bool, error) {
	r, err := c.find(ctx, name)
	if err != nil {
		return false, fmt.Errorf("image %q: %w", name, err)
	}
	return r != nil, nil
}

// Has is Exists for callers that have no use for an error: what the store does
// not tell is taken to be there, so that nothing is made in its place, and
// whoever goes on with it hears of the error.
func (c *Catalog) Has(name string) bool {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.life), time.Minute)
	defer cancel()
	ok, err := c.Exists(ctx, name)
	return ok || err != nil
}

// find returns the record of a name, nil if there is no image of that name.
func (c *Catalog) find(ctx context.Context, name string) (*record, error) {
	c.mu.Lock()
	r, listed, start := c.records[name], c.listed, c.seq
	c.mu.Unlock()
	if r != nil || listed || CheckName(name) != nil {
		return r, nil
	}
	if c.soon(ctx) {
		return c.find(ctx, name)
	}
	r, err := c.ask(ctx, name)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.listed || c.changed[name] > start || c.records[name] != nil {
		return c.records[name], nil // what was asked may be older
	}
	if s, ok := c.superseded[name]; r == nil || ok && r.same(s.record) {
		return nil, nil
	}
	c.records[name], c.stale[name] = r, true
	return r, nil
}

// patience is how long a listing may take until names are asked for: that of a
// small store is through before four questions are.
const patience = 200 * time.Millisecond

// soon waits for a first listing that has just begun, and reports whether it came
// to its end.
func (c *Catalog) soon(ctx context.Context) bool {
	c.mu.Lock()
	a := c.first
	c.mu.Unlock()
	if a == nil {
		return false
	}
	late := time.NewTimer(time.Until(a.begun.Add(c.patience)))
	defer late.Stop()
	select {
	case <-a.done:
		return a.err == nil
	case <-late.C:
	case <-ctx.Done():
	}
	return false
}

// ask asks the store for the record of a name; nil if there is none.
func (c *Catalog) ask(ctx context.Context, name string) (*record, error) {
	o, err := c.object(ctx, entryKey(name))
	if err != nil {
		return nil, err
	}
	if !isMark(o) {
		return &record{entry: o}, nil
	}
	g, err := c.adoptable(ctx, name)
	if err != nil || g == nil {
		return nil, err
	}
	return &record{group: g}, nil
}

// adoptable asks the store for the image that is adopted under a name now,
// unless there is an entry of that name; nil if there is none.
func (c *Catalog) adoptable(ctx context.Context, name string) (*group, error) {
	o, err := c.object(ctx, hideKey(name))
	if err != nil {
		return nil, err
	}
	g, err := c.gather(ctx, name)
	if err != nil || g == nil {
		return nil, err
	}
	hidden, err := c.hides(ctx, o, g.disks)
	if err != nil || hidden {
		return nil, err
	}
	return g.over(o), nil
}

// gather asks the store for the objects at the top that make up an image of a
// name, also if they are hidden; nil if there are none.
func (c *Catalog) gather(ctx context.Context, name string) (*group, error) {
	cs, err := c.top(ctx, name+".", &listing{})
	if err != nil {
		return nil, err
	}
	first, err := c.top(ctx, name+"-0.", &listing{})
	if err != nil {
		return nil, err
	}
	if isGroup(first, name) {
		if first, err = c.top(ctx, name+"-", &listing{}); err != nil {
			return nil, err
		}
		cs = append(cs, first...)
	}
	if base, _, ok := numbered(name); ok && len(cs) > 0 {
		if first, err = c.top(ctx, base+"-0.", &listing{}); err != nil {
			return nil, err
		}
		cs = append(cs, first...)
	}
	return adopt(cs)[name], nil
}

// isGroup reports whether there is a disk 0 of a name among some candidates.
func isGroup(cs []candidate, name string) bool {
	for _, c := range cs {
		if c.number == 0 && c.base == name {
			return true
		}
	}
	return false
}

// object is the present version of an object, zero if there is none.
func (c *Catalog) object(ctx context.Context, key string) (remote.Object, error) {
	o, err := c.store.Stat(ctx, key)
	if errors.Is(err, fs.ErrNotExist) {
		return remote.Object{}, nil
	}
	return o, err
}
