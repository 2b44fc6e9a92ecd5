package main

import (
	"context"
	"errors"
	"fmt"
	"os"
)

func rmCommand() *command {
	var f storeFlags
	c := &command{
		name: "rm", args: "STORE IMAGE...", summary: "delete images",
		help: `Marks images as deleted: they are no longer shown, and nothing of them is lost
until "imagefs gc" finds that they were deleted long enough ago. Until then
"imagefs restore" brings them back, and "imagefs ls --deleted" lists them.

Example: imagefs rm s3://images/prod centos6 centos7
`,
	}
	c.flags = f.add
	c.run = func(ctx context.Context, args []string) error {
		if len(args) < 2 {
			return usagef("rm takes %s, not %d arguments", c.args, len(args))
		}
		s, err := start(ctx, &f, args[0], "", defaultCache)
		if err != nil {
			return err
		}
		defer s.close()
		var failed []error
		for _, name := range args[1:] {
			if err := s.cat.Remove(ctx, name); err != nil {
				failed = append(failed, err)
				continue
			}
			fmt.Fprintf(os.Stderr, "deleted image %q: \"imagefs restore\" brings it back until \"imagefs gc\" frees its space\n", name)
		}
		return errors.Join(failed...)
	}
	return c
}
