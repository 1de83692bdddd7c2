package dicomsvc

import "time"

const (
	// offerEvery and offerItemsMax batch the catalog entries of fresh instances (design §4): one Raft
	// entry carries what arrived in that time.
	offerEvery    = 50 * time.Millisecond
	offerItemsMax = 256
	// partnerOfferAfter is how long the second holder leaves the offer to the receiver.
	partnerOfferAfter = 2 * time.Second
	// offerTimeout bounds one proposal; without a quorum the offers are made again.
	offerTimeout = 10 * time.Second
	// offerRetryMax is the longest pause between offers while there is no quorum.
	offerRetryMax = 2 * time.Second
	// cataloguedMax bounds the wait for the catalog where an acknowledgement means that too; beyond it the
	// sender is told to retry (P2: no single fault delays a response by more than 5 s).
	cataloguedMax = 4 * time.Second
	// offerPruneMax bounds the entries that wait for another node's offer and are looked up in the
	// catalog at once.
	offerPruneMax = 1024
	// offerAgainAfter is when an item that the catalog refused as malformed is offered again: a newer
	// program may take it.
	offerAgainAfter = time.Hour
	// pendingItemsMax is how many entries wait in memory and are seen by queries, some 2.7 KB each with
	// their place in the overlay; the rest are read from the journal again when their turn comes, so that
	// an island's backlog costs tens of bytes an instance beyond.
	pendingItemsMax = 32768
	// headerSpillMax bounds what Put holds of an object before it knows the study: the scanner's own
	// header budget and one read-ahead.
	headerSpillMax = 17 << 20
	// earlyKeptMax is the largest buffer for such a beginning that is kept for the next object.
	earlyKeptMax = 256 << 10
	// manifestCacheBytes bounds the decoded manifests kept for metadata requests.
	manifestCacheBytes = 32 << 20
	// sealTick is how often due studies are looked for.
	sealTick = time.Second
	// sealTimeout bounds one sealing attempt; a 1 GiB pack over a 20 Mbit/s line takes 7 minutes.
	sealTimeout = 30 * time.Minute
	// sealTriesMax bounds the attempts at one pack, each without the version or the node that failed the
	// one before.
	sealTriesMax = 4
	// sealRetryMin and sealRetryMax are the shortest and the longest pause before a study that could not be
	// sealed is tried again.
	sealRetryMin = 2 * time.Second
	sealRetryMax = 5 * time.Minute
	// releasePacksMax bounds the packs whose versions are held in memory to be released at once.
	releasePacksMax = 4
	// sealRaceWait is how long a sealer on demand waits for the catalog to tell that another one was first; it looks every sealRaceLook.
	sealRaceWait = 2 * time.Second
	sealRaceLook = 50 * time.Millisecond
	// mendRetry is the pause between two rounds over journal records that could not be mended.
	mendRetry = 30 * time.Second
	// mendCompareFirst and mendCompareEvery are when the catalog's list of what this node holds is compared
	// with its journal: for the first time when a restarted ring has applied its log again.
	mendCompareFirst = time.Minute
	mendCompareEvery = 30 * time.Minute
	// mendItemsMax bounds the missing records of one comparison; the next finds the others.
	mendItemsMax = 4096
	// sealShare, sealFloor and sealBurst pace sealing while senders send: it may take one byte for every two
	// that arrive and 16 MiB/s besides, some 4 % of a core, so that a thin line that never rests does not
	// keep everything unsealed; what was not used is kept for one stripe.
	sealShare = 2
	sealFloor = 16 << 20
	sealBurst = 4 << 20
	// sealIdle is how long no byte must have arrived for the senders to be at rest: longer than any sync.
	sealIdle = 100 * time.Millisecond
	// sealPause is how often a sealer that is held back looks again.
	sealPause = 5 * time.Millisecond
	// sealBehindMax is the backlog of due studies at which sealing no longer yields.
	sealBehindMax = 8 << 30
	// staleEncode is when another node may abort an encode whose sealer is gone.
	staleEncode = 2 * time.Minute
	// releaseTick is how often journal records are compared with the applied catalog.
	releaseTick = 2 * time.Second
	// instancesPage is how many instances of a retrieve request are listed at once at first; each further page of a
	// study has twice as many, up to instancesPageMax, two of which take some 20 MB.
	instancesPage    = 512
	instancesPageMax = 8192
	// readerLease is how long a query under way keeps its reader, which holds a snapshot of the database;
	// then it goes on with a new one.
	readerLease = 10 * time.Second
	// selectionMax bounds the unique keys of one retrieve request.
	selectionMax = 10000
	// rewriteKeepBytes is the largest object that is read once, and kept in memory, to be rewritten in another
	// transfer syntax; a CT slice has half of it.
	rewriteKeepBytes = 1 << 20
	// decodeKeepBytes is the largest native pixel data that are kept in memory when compressed ones were decoded, and not decoded a
	// second time to be sent: a mammogram has some 30 MiB.
	decodeKeepBytes = 32 << 20
	// poisonStrikes is how often an object may make this node panic before it is refused at once.
	poisonStrikes = 3
	// poisonMax bounds the objects whose strikes are remembered.
	poisonMax = 1024
)
