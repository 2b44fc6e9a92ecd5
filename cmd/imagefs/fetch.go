package main

import (
	"context"
	"errors"
	"net/url"
	"time"
)

func (d *download) web(ctx context.Context, u *url.URL, patience time.Duration) error {
	return errors.New("not yet")
}

func (d *download) object(ctx context.Context, f *storeFlags, folder, key string) error {
	return errors.New("not yet")
}
