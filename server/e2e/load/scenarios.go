package main

import "context"

// scenario is one thing to measure. run is one run in a fresh database.
type scenario struct {
	name, short string
	defaults    map[string]string
	compare     string // settings that are shown side by side unless others are asked for
	run         func(ctx context.Context, b *bench) error
}

var scenarios = func() map[string]*scenario {
	all := map[string]*scenario{}
	for _, s := range []*scenario{
		{name: "php", short: "Send in php mode, and what it adds to the bare SMTP exchange", defaults: map[string]string{"conns": "64"}, run: php},
		{name: "daemon", short: "Send in daemon mode into the queue, then one RunBatch", run: daemon},
		{name: "unary", short: "Send in daemon mode, while the batch rests and while it never does", run: unary},
		{name: "batch", short: "SendBatch in, delivered, recorded in the archive", defaults: map[string]string{"mails": "50000"}, run: batch},
		{name: "shared", short: "one body with variables to all, one 1 MiB file to a twentieth", defaults: map[string]string{"mails": "100000"}, run: shared},
		{name: "far", short: "batch to a relay at a distance, with all connections and with a fifth of them", defaults: map[string]string{"conns": "50"}, run: far},
		{name: "flat", short: "many mails through one database, tenth by tenth", defaults: map[string]string{"mails": "500000", "runs": "1", "timeout": "30m"}, compare: "snapshot=0,snapshot=200000", run: flat},
		{name: "latency", short: "Send in php mode alone and beside a saturated queue", defaults: map[string]string{"mails": "2000", "streams": "4"}, run: latency},
		{name: "abuse", short: "Send in php mode alone and beside another caller who means harm", defaults: map[string]string{"mails": "500", "runs": "1", "access": "true", "pace": "20ms"}, run: abuse},
		{name: "large", short: "each call on a million due mails, and on an archive, against its bar", defaults: map[string]string{"mails": "1000000", "runs": "1", "timeout": "3h"}, run: large},
	} {
		all[s.name] = s
	}
	return all
}()
