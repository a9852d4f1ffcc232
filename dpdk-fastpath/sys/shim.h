/* Every C symbol of DPDK that Causeway calls, shaped for bursts. No header of DPDK is read here,
 * so that bindgen sees plain structs and nothing else. Functions that return int give 0 (or a
 * count) for success and a negative errno for failure. */
#ifndef CAUSEWAY_SHIM_H
#define CAUSEWAY_SHIM_H

#include <stddef.h>
#include <stdint.h>

struct cw_pool;
struct cw_ring;

/* The first cache line of a frame's segment, field for field as DPDK lays it out (shim.c asserts
 * it): reading lengths and offsets from Rust costs no call. */
struct cw_mbuf {
	uint8_t *buf_addr;
	uint64_t address_or_next;
	uint16_t data_off;
	uint16_t refcnt;
	uint16_t nb_segs;
	uint16_t port;
	uint64_t ol_flags;
	uint32_t packet_type;
	uint32_t pkt_len;
	uint16_t data_len;
	uint16_t vlan_tci;
	uint32_t rss;
	uint32_t hash_high;
	uint16_t vlan_tci_outer;
	uint16_t buf_len;
	struct cw_pool *pool;
};

/* Bits of ol_flags, as a receiving port sets them. */
#define CW_SEEN_RSS_HASH (1ULL << 1)
#define CW_SEEN_L4_BAD (1ULL << 3)
#define CW_SEEN_L4_GOOD (1ULL << 8)

/* Bits of ol_flags, as a sender asks for work. */
#define CW_ASK_OUTER_UDP_CHECKSUM (1ULL << 41)
#define CW_ASK_UDP_SEGMENTS (1ULL << 42)
#define CW_ASK_VXLAN (1ULL << 45)
#define CW_ASK_TCP_SEGMENTS (1ULL << 50)
#define CW_ASK_TCP_CHECKSUM (1ULL << 52)
#define CW_ASK_SCTP_CHECKSUM (2ULL << 52)
#define CW_ASK_UDP_CHECKSUM (3ULL << 52)
#define CW_ASK_L4_CHECKSUM (3ULL << 52)
#define CW_ASK_IPV4_CHECKSUM (1ULL << 54)
#define CW_ASK_IPV4 (1ULL << 55)
#define CW_ASK_IPV6 (1ULL << 56)
#define CW_ASK_OUTER_IPV4_CHECKSUM (1ULL << 58)
#define CW_ASK_OUTER_IPV4 (1ULL << 59)
#define CW_ASK_OUTER_IPV6 (1ULL << 60)
#define CW_ASK_ANY                                                                                  \
	(CW_ASK_OUTER_UDP_CHECKSUM | CW_ASK_UDP_SEGMENTS | CW_ASK_VXLAN | CW_ASK_TCP_SEGMENTS |     \
	 CW_ASK_L4_CHECKSUM | CW_ASK_IPV4_CHECKSUM | CW_ASK_IPV4 | CW_ASK_IPV6 |                    \
	 CW_ASK_OUTER_IPV4_CHECKSUM | CW_ASK_OUTER_IPV4 | CW_ASK_OUTER_IPV6)

/* What a port can do on receipt. */
#define CW_RX_IPV4_CHECKSUM (1ULL << 1)
#define CW_RX_UDP_CHECKSUM (1ULL << 2)
#define CW_RX_TCP_CHECKSUM (1ULL << 3)
#define CW_RX_SCATTER (1ULL << 13)
#define CW_RX_SCTP_CHECKSUM (1ULL << 17)
#define CW_RX_RSS_HASH (1ULL << 19)

/* What a port can do when it sends. */
#define CW_TX_IPV4_CHECKSUM (1ULL << 1)
#define CW_TX_UDP_CHECKSUM (1ULL << 2)
#define CW_TX_TCP_CHECKSUM (1ULL << 3)
#define CW_TX_SCTP_CHECKSUM (1ULL << 4)
#define CW_TX_TCP_SEGMENTS (1ULL << 5)
#define CW_TX_UDP_SEGMENTS (1ULL << 6)
#define CW_TX_OUTER_IPV4_CHECKSUM (1ULL << 7)
#define CW_TX_VXLAN_SEGMENTS (1ULL << 9)
#define CW_TX_CHAINS (1ULL << 15)
#define CW_TX_OUTER_UDP_CHECKSUM (1ULL << 20)

/* Bytes kept free before a received frame. */
#define CW_HEADROOM 128

/* Header lengths and the segment size that go with the CW_ASK bits in flags. */
struct cw_request {
	uint64_t flags;
	uint16_t l2_len;
	uint16_t l3_len;
	uint16_t l4_len;
	uint16_t segment;
	uint16_t outer_l2_len;
	uint16_t outer_l3_len;
};

struct cw_memory {
	uint64_t total;
	uint64_t free;
	uint64_t largest_free;
};

struct cw_port_info {
	char driver[32];
	uint8_t mac[6];
	uint16_t min_mtu;
	uint16_t max_mtu;
	uint16_t mtu;
	uint16_t max_rx_queues;
	uint16_t max_tx_queues;
	uint64_t rx_offloads;
	uint64_t tx_offloads;
	int32_t socket;
};

/* Asked for on the way in, granted on the way out. */
struct cw_port_setup {
	uint16_t rx_queues;
	uint16_t tx_queues;
	uint16_t rx_ring;
	uint16_t tx_ring;
	uint16_t mtu; /* 0: as the port has it */
	uint16_t interrupts;
	uint64_t rx_offloads;
	uint64_t tx_offloads;
};

struct cw_port_stats {
	uint64_t rx_frames;
	uint64_t rx_bytes;
	uint64_t rx_missed;
	uint64_t rx_errors;
	uint64_t rx_no_buffer;
	uint64_t tx_frames;
	uint64_t tx_bytes;
	uint64_t tx_errors;
};

struct cw_link {
	uint32_t mbps; /* UINT32_MAX: unknown */
	uint8_t up;
	uint8_t full_duplex;
};

/* The environment. */
typedef void (*cw_log_sink)(uint32_t level, const char *text, size_t len);
int cw_eal_init(int argc, char **argv);
int cw_eal_cleanup(void);
const char *cw_version(void);
const char *cw_error_text(int error);
/* Sends DPDK's log lines to sink, for the life of the process; level 1 (emergency) to 8 (debug). */
int cw_log_to(cw_log_sink sink, uint32_t level);
int cw_memory(struct cw_memory *out);
/* Gives the calling thread an lcore id, and with it a cache in every pool made before or after. */
int cw_thread_register(void);
void cw_thread_unregister(void);
uint64_t cw_tsc(void);
uint64_t cw_tsc_hz(void);

/* Pools and frames. */
int cw_pool_create(const char *name, uint32_t frames, uint32_t cache, uint16_t room, struct cw_pool **out);
void cw_pool_free(struct cw_pool *pool);
uint32_t cw_pool_in_use(const struct cw_pool *pool);
uint32_t cw_pool_free_count(const struct cw_pool *pool);
/* All n or none (-ENOENT). */
int cw_mbuf_alloc(struct cw_pool *pool, struct cw_mbuf **out, uint16_t n);
void cw_mbuf_free(struct cw_mbuf **mbufs, uint16_t n);
int cw_mbuf_chain(struct cw_mbuf *head, struct cw_mbuf *tail);
struct cw_mbuf *cw_mbuf_next(const struct cw_mbuf *mbuf);
/* Takes every segment but the first off head; NULL when there is one only. */
struct cw_mbuf *cw_mbuf_split(struct cw_mbuf *head);
/* Shortens the whole frame to len bytes and frees the segments past its end. */
void cw_mbuf_truncate(struct cw_mbuf *mbuf, uint32_t len);
/* Copies a chain into its first segment, if its tail room suffices. */
int cw_mbuf_linearise(struct cw_mbuf *mbuf);
void cw_mbuf_ask(struct cw_mbuf *mbuf, const struct cw_request *request);
void cw_mbuf_asked(const struct cw_mbuf *mbuf, struct cw_request *out);

/* Ports. */
int cw_port_attach(const char *devargs, uint16_t *port);
int cw_port_by_name(const char *name, uint16_t *port);
int cw_port_detach(uint16_t port);
int cw_port_info(uint16_t port, struct cw_port_info *out);
int cw_port_configure(uint16_t port, struct cw_port_setup *setup);
int cw_port_rx_queue(uint16_t port, uint16_t queue, uint16_t ring, struct cw_pool *pool);
int cw_port_tx_queue(uint16_t port, uint16_t queue, uint16_t ring);
int cw_port_start(uint16_t port);
int cw_port_stop(uint16_t port);
int cw_port_stats(uint16_t port, struct cw_port_stats *out);
int cw_port_link(uint16_t port, struct cw_link *out);
int cw_port_promiscuous(uint16_t port, int on);

/* Queues. */
/* Receives up to n frames; multi-segment mbufs arrive as chains, counted as one. */
uint16_t cw_rx_burst(uint16_t port, uint16_t queue, struct cw_mbuf **out, uint16_t n);
/* Sends from the front; mbufs[returned..] stay the caller's. */
uint16_t cw_tx_burst(uint16_t port, uint16_t queue, struct cw_mbuf **mbufs, uint16_t n);
/* Lets the driver ready requested offloads; how many from the front are fit to send, with the
 * reason for the first that is not in error. */
uint16_t cw_tx_prepare(uint16_t port, uint16_t queue, struct cw_mbuf **mbufs, uint16_t n, int *error);
/* The descriptor that becomes readable with a frame in the queue, or -ENOTSUP. */
int cw_rx_descriptor(uint16_t port, uint16_t queue);
int cw_rx_interrupt(uint16_t port, uint16_t queue, int on);

/* Ports made of rings. */
int cw_ring_create(const char *name, uint32_t size, struct cw_ring **out);
void cw_ring_free(struct cw_ring *ring);
uint16_t cw_ring_put(struct cw_ring *ring, struct cw_mbuf **mbufs, uint16_t n);
uint16_t cw_ring_take(struct cw_ring *ring, struct cw_mbuf **out, uint16_t n);
int cw_ring_port(const char *name, struct cw_ring **rx, struct cw_ring **tx, uint16_t queues, uint16_t *port);

#endif
