package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"imagefs/cache"
	"imagefs/cache/disk"
	"imagefs/codec"
	"imagefs/codec/all"
	"imagefs/fs/image"
	"imagefs/remote"
	"imagefs/remote/catalog"
	"imagefs/remote/dir"
	"imagefs/remote/s3"
)

// storeFlags say how a store is reached.
type storeFlags struct {
	endpoint, region, pathStyle, profile string
	anonymous                            bool
	timeout                              time.Duration
}

func (f *storeFlags) add(set *pflag.FlagSet) {
	set.StringVar(&f.endpoint, "endpoint", "", "URL of the S3 service (default AWS, or AWS_ENDPOINT_URL_S3)")
	set.StringVar(&f.region, "region", "", "S3 region (default AWS_REGION)")
	set.StringVar(&f.pathStyle, "path-style", "auto", "bucket in the path of requests: auto, path or virtual")
	set.StringVar(&f.profile, "profile", "", "profile of the shared credentials file (default AWS_PROFILE)")
	set.BoolVar(&f.anonymous, "anonymous", false, "ask without credentials")
	set.DurationVar(&f.timeout, "timeout", 30*time.Second, "longest that one read retries before it fails with EIO")
}

// store is an open store and what is known of it.
type store struct {
	*remote.Observed
	name  string     // for people, and for the mount table
	id    string     // tells it from every other store
	stats func() any // of the store's own client, or nil
	close func() error
}

// open opens a store by its name on the command line.
func (f *storeFlags) open(ctx context.Context, name string) (*store, error) {
	if strings.HasPrefix(name, "s3://") {
		bucket, prefix, err := s3.ParseURL(name)
		if err != nil {
			return nil, usagef("%v", err)
		}
		s, err := s3.Open(ctx, s3.Config{
			Bucket: bucket, Prefix: prefix, Endpoint: f.endpoint, Region: f.region, PathStyle: f.pathStyle,
			Profile: f.profile, Anonymous: f.anonymous, Budget: f.timeout,
		})
		if err != nil {
			return nil, storeError{err}
		}
		return &store{
			Observed: remote.Observe(s), name: name, id: s.Identity(),
			stats: func() any { return s.Stats() }, close: func() error { return nil },
		}, nil
	}
	if scheme, _, ok := strings.Cut(name, "://"); ok && scheme != "file" {
		return nil, usagef("store %q: %q is not a kind of store: give a directory or s3://BUCKET/PREFIX", name, scheme)
	}
	path, err := filepath.Abs(strings.TrimPrefix(name, "file://"))
	if err != nil {
		return nil, storeError{err}
	}
	s, err := dir.Open(path)
	if err != nil {
		return nil, storeError{err}
	}
	return &store{Observed: remote.Observe(s), name: path, id: path, close: s.Close}, nil
}

// shown is what --formats asks for.
type shown struct {
	views    []codec.View
	packages []codec.Package
}

// parseFormats turns the value of --formats into what is shown.
func parseFormats(names string) (chosen shown, err error) {
	if names == "" {
		return shown{all.Shown, all.Packages}, nil
	}
	known := all.Views
	if names == "all" {
		return shown{known, all.Packages}, nil
	}
	var list []string
	for _, v := range known {
		list = append(list, v.Name())
	}
	for _, p := range all.Packages {
		list = append(list, p.Name())
	}
	seen := make(map[string]bool)
	for name := range strings.SplitSeq(names, ",") {
		if seen[name] {
			continue
		}
		seen[name] = true
		i := slices.IndexFunc(known, func(v codec.View) bool { return v.Name() == name })
		k := slices.IndexFunc(all.Packages, func(p codec.Package) bool { return p.Name() == name })
		switch {
		case i >= 0:
			chosen.views = append(chosen.views, known[i])
		case k >= 0:
			chosen.packages = append(chosen.packages, all.Packages[k])
		default:
			return chosen, usagef("unknown format %q: choose of %s, or all", name, strings.Join(list, ", "))
		}
	}
	return chosen, nil
}

// session is a store with its catalog and what opens its images.
type session struct {
	store  *store
	cat    *catalog.Catalog
	cache  *cache.Cache
	disk   *disk.Cache // nil without one
	opener *image.Opener

	packages []codec.Package // that are shown
}

// start opens a store, lists it and prepares to open images.
func start(ctx context.Context, f *storeFlags, name, formats string, cacheSize int64) (*session, error) {
	s, err := begin(ctx, f, name, formats, cacheSize)
	if err != nil {
		return nil, err
	}
	if err := s.cat.Ready(ctx); err != nil {
		s.close()
		return nil, fmt.Errorf("open store %q: %w", name, err)
	}
	return s, nil
}

// begin is start without the listing. A store that cannot be reached is an
// error all the same.
func begin(ctx context.Context, f *storeFlags, name, formats string, cacheSize int64) (*session, error) {
	show, err := parseFormats(formats)
	if err != nil {
		return nil, err
	}
	c, err := cache.New(cache.Config{
		Size: cacheSize, FetchTimeout: 2 * f.timeout,
		Whole: func(err error) bool { return errors.Is(err, remote.ErrUnavailable) },
	})
	if err != nil {
		return nil, usagef("%v", err)
	}
	st, err := f.open(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("open store %q: %w", name, err)
	}
	cat := catalog.New(ctx, st, all.Extensions)
	s := &session{store: st, cat: cat, cache: c, packages: show.packages}
	s.opener = image.NewOpener(image.Config{
		Store: st, Cache: c, Tier: s.tier, Formats: all.Formats, Views: show.views, OpenTimeout: 2 * f.timeout,
	})
	return s, nil
}

// source reads an object, through the cache where its bytes are not on this
// machine. done is to be called after the last read.
func (s *session) source(o remote.Object) (src codec.Source, done func()) {
	obj := &image.Object{Store: s.store, Version: o}
	if remote.IsLocal(s.store) {
		return obj, func() {}
	}
	r := s.cache.Reader(obj, o.Size, cache.ReaderConfig{})
	return r, r.Close
}

func (s *session) close() {
	s.cache.Close()
	s.closeDisk()
	s.store.close()
}

// closeDisk lets the disk cache go. It may be called again.
func (s *session) closeDisk() {
	if s.disk != nil {
		s.disk.Close()
	}
}
