package access

import "crypto/sha256"

// ofWorkload is before the subject of a workload's token in the file of names. No certificate
// is known by a name that begins so.
const ofWorkload = "oidc:"

// maxWorkloads is how many tokens are remembered. Each is right and holds still; beyond it a
// signature is checked for each call.
const maxWorkloads = 10_000

// work is a workload with one of its tokens. The principal ends with the token, or when the
// name is known no more.
type work struct {
	named *Principal
	*Principal
}

// workload says who calls by a token of another issuer.
func (b *Book) workload(s *state, token string) (*Principal, error) {
	sum := sha256.Sum256([]byte(token))
	b.workMu.Lock()
	had := b.workloads[sum]
	b.workMu.Unlock()
	if had != nil {
		return had.Principal, Caller{Principal: had.Principal}.Err()
	}
	subject, expire, err := b.cfg.Workload(token)
	if err != nil {
		return nil, err
	}
	named := s.names[ofWorkload+subject]
	if named == nil {
		return nil, refused("the token is not known")
	}
	p := *named
	p.Expire, p.now, p.fleeting = expire, b.cfg.Now, true
	b.workMu.Lock()
	defer b.workMu.Unlock()
	if len(b.workloads) < maxWorkloads {
		if had := b.workloads[sum]; had != nil {
			return had.Principal, nil
		}
		p.ended, p.fleeting = make(chan struct{}), false
		b.workloads[sum] = &work{named, &p}
	}
	return &p, nil
}

// endWorkloads ends those whose token has expired or whose name is known no more. A call that
// began meanwhile with what was known before is ended at the next reading.
func (b *Book) endWorkloads() {
	b.workMu.Lock()
	defer b.workMu.Unlock()
	now := b.cfg.Now()
	for sum, w := range b.workloads {
		if w.named.over() || !now.Before(w.Expire) {
			close(w.ended)
			delete(b.workloads, sum)
		}
	}
}
