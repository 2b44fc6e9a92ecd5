package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
)

func restoreCommand() *command {
	var f storeFlags
	c := &command{
		name: "restore", args: "STORE IMAGE", summary: "bring a deleted image back",
		help: `Of several deleted images of the name it is the one that was deleted last. If an
image of the name is there, rename or delete that one first. "imagefs ls
--deleted" lists what can be brought back.

Example: imagefs restore s3://images/prod centos7
`,
	}
	c.flags = f.add
	c.run = func(ctx context.Context, args []string) error {
		if err := c.need(args, 2); err != nil {
			return err
		}
		s, err := start(ctx, &f, args[0], "", defaultCache)
		if err != nil {
			return err
		}
		defer s.close()
		im, err := s.cat.Restore(ctx, args[1])
		switch {
		case errors.Is(err, fs.ErrExist):
			return fmt.Errorf("%w: an image of that name is there: rename or delete it first", err)
		case errors.Is(err, fs.ErrNotExist):
			return fmt.Errorf("%w: \"imagefs ls --deleted\" lists what can be brought back", err)
		case err != nil:
			return err
		}
		fmt.Fprintf(os.Stderr, "restored image %q with %s\n", im.Name, count(len(im.Disks), "disk"))
		return nil
	}
	return c
}

// count writes a number of things.
func count(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}
