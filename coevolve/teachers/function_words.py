"""Words that say little about what a text is about, and what tells a language by its letters.

Words stand apart by spaces; in the tables a language's line goes on where the next is indented. The
lists are short on purpose: a word that they lack is a word too much, no error.
"""

# ruff: noqa: RUF001  (letters of other scripts are what this file is about)

from collections.abc import Mapping


def _table(text: str) -> Mapping[str, str]:
    lines = text.strip().replace("\n  ", " ").split("\n")
    return {name: " ".join(listed.split()) for name, _, listed in (x.partition(":") for x in lines)}


FUNCTION_WORDS = _table("""
English: a about again ah all almost already also always am an and another any anything are aren art as at away aye
    back be because been before being but by can cannot could couldn d did didn do does doesn doing don done doth
    down each either else ere even ever every everything few for from get gets getting go going gonna got ha had
    hadn has hasn hast hath have haven having he hello her here hers hey hi him his hmm how i if in into is isn it
    its itself just kind know like ll lot lots m make makes many may maybe me might mine more most much must my
    myself nay never no nor not nothing now o of off oh ok okay on once one only or other our out over own please
    quite re really s same shall she should shouldn so some something sometimes soon sorry still such sure t than
    thank thanks that the thee their them then there these they thine thing things think this those thou though
    through thus thy till tis to too twas under until up upon us use ve very want was wasn way we well were weren
    what when where which while who whom whose why will with won would wouldn wow ye yeah yep yes yet you your yours
    yourself
German: aber alle alles als also am an auch auf aus bei bin bis bist da damit danke dann das dass dein deine dem den
    der des dich die dies diese dir doch dort du ein eine einen einem einer eines er es etwas euch für ganz gar gibt
    habe haben hast hat hatte ich ihm ihn ihr ihre im immer in ist ja jetzt kann kannst kein keine können machen mal
    man mehr mein meine meinen mich mir mit muss nach nein nicht nichts noch nur oder schon sehr sein seine sich sie
    sind so über um und uns unter viel vom von vor war waren warum was wenn wer werde wie will wir wird wo würde zu
    zum zur
French: ah ai aller alors après as au aucun aussi autre aux avais avait avec avez avoir avons beaucoup bien c ce
    cela ces cet cette chez comme comment d dans de des deux donc du elle elles en encore es est et étais était été
    être eu fait faire fais il ils j je jamais l la le les leur lui m ma mais me même mes moi mon n ne ni non nos
    notre nous on ont ou où oui par parce pas peu peut peux plus pour pourquoi puis qu quand que quel quelle quels
    quelque qui quoi s sa sans se ses si son sont suis sur t ta te tes toi ton toujours tous tout toute très tu un
    une va vais vas vers veux voir vos votre vous vraiment y
Italian: a abbiamo agli ai al alla alle allo altro anche ancora anni anno avere beh c che chi ci ciao co come con
    cosa così cui d da dai dal dalla dalle davvero degli dei del della delle dello di dove due e ecco ed era ero
    essere fa fai fare fatto gli ha hai hanno ho i il in io l la le lei lo loro lui ma mai me mi mia mie miei mio
    molti molto n ne negli nei nel nella no noi non nostro o ogni oh ok per perché però piace più po poi può qual
    quale quando quanto quella quello questa questi questo qui se sei sembra sempre si sì sia siamo solo sono sta
    stai stato sto su sua sue sul sulla suo te ti troppo tu tua tue tuo tuoi tutti tutto un una uno va vai voi
Spanish: a ahora al algo algún año años aquí así aún bien como cómo con cuál cuando cuándo de del desde donde dónde
    dos e el él ella ellos en entonces era eres es esa ese eso esta está estaba estás este esto estoy fue ha hace
    hacer haces has hay he la las le les lo los más me mi mí mis mucho muchos muy nada ni no nos o otro para pero
    poco por porque puede puedo pues que qué quién quiero sabes se ser si sí sin sobre solo son soy su sus también
    tan te tengo ti tiene tienes todo todos tu tú tus un una uno usted va vas voy y ya yo
Portuguese: a agora ainda ano anos ao aos aqui as às até bem boa bom com como da das de dela dele depois do dos e é
    ela ele eles em entre era essa esse está estão este estou eu faz fazer foi gosto há isso isto já lá lhe mais mas
    me mesmo meu meus minha minhas muito muitos na não nas nem no nos nós num numa o os ou para pela pelo pode por
    porque posso pra qual quando que quem quero são se sem ser seu seus sim só sobre sou sua suas também tão te tem
    tenho ter teu tinha toda todo todos tu tua tudo um uma vai você vocês vou
Indonesian: ada adalah aku akan anda apa apakah atau baik bagaimana bagus banyak baru beberapa begitu belum benar
    berapa bisa bukan dalam dan dapat dari di dia hanya harus hari ia ini itu iya jadi jika juga kabar kalau kami
    kamu karena kau ke kita lagi lain lebih mana masih mengapa mereka milik mungkin nya oh oleh pada pernah pun
    punya sama sangat satu saya sebagai sebuah sedang sekali sekarang selalu semua seorang seperti sering siapa
    sudah suka tahun tapi telah tentang tentu tetapi tidak tak untuk wow ya yang
Dutch: aan al alleen als altijd ben bent bij ook daar dan dat de deze die dit doe doen door een eens en er erg geen
    goed had hallo hebben hebt heb heeft heel het hij hoe hun ik in is ja jaar je jij jou jouw kan kun maar me meer
    met mij mijn moet na naar nee niet niets nog nu of om omdat ons ook op over te toch tot uit van veel voor vraag
    waar wanneer want waren was wat we weet wel wie wij wil worden wordt ze zeer zij zijn zo zou
Russian: а без бы был была было быть в вам вас весь во вот все всё всегда вы где да для до его ее её если есть ещё
    еще же за и из или им их к как какой когда кто ли мне меня мой моя мои мы на нас не нет ни но о об он она они от
    очень по почему при про просто с себя сейчас со так такой там тебе тебя то тоже только ты твой у уже хорошо чем
    что чтобы это этот эта эти я
Chinese: 我们 你们 他们 她们 它们 我 你 您 他 她 它 的 得 地 了 着 过 吗 嗎 吧 呢 啊 呀 哦 哇 嗯 是 在 有 不 没 也
    都 就 还 很 太 真 更 最 和 与 跟 或 但是 但 而 因为 所以 如果 虽然 可是 可以 可能 应该 会 能 要 想 让 把 被 给
    对 从 到 为什么 为 什么 怎么样 怎么 这样 那样 这个 那个 这里 那里 这 那 哪里 哪 谁 几 个 些 们 一个 一些 一点 一
    只 才 又 再 已经 正在 将 非常 觉得 知道 喜欢 一样 当然 这些 那些 之 以 及 并 上 下 里 中 去 来 看 做 说 吃 喝 用
    听 好 起来 听起来 等 名 岁 次 件
Japanese: 私 僕 俺 彼 彼女 君 何 今 今日 事 時 人 方 物 本当 大好 好 思 言 行 見 来 一 二 々
Korean: 나 너 난 넌 내 네 니 제 저 전 우리 그 이 저는 나는 너는 그는 것 그것 이것 저것 거 게 건 걸 수 때 더 많이
    정말 진짜 너무 매우 아주 그리고 그러나 그래서 하지만 그런데 왜냐하면 또는 응 네 예 아니 아니요 그래 와우 음 오
    어 무엇 뭐 어디 어떻게 왜 누구 언제 어떤 있어 있다 있니 없어 없다 해 하고 한다 했어 하니 이야 야 입니다 좋아
    좋다 좋은 좋아해 모든 모두 항상 나도 너도 나의 너의 나를 너를 나에게 너에게 당신 당신은 당신의
""")
"""Per language, words that say little about what a text is about."""

CHINESE_COMPOUNDS = """
    吉他 其他 机会 社会 学会 聚会 音乐会 中国 中学 中心 上班 下班 上学 早上 晚上 好吃 好看 爱好 能力 目的 的确 地方
    地址 地球 土地 来自 未来 得到 成为 最近 有趣 有名 有钱 有钱人 名人 名字 用品 作用 对方 要求 重要 需要 想法 梦想
    真正 家里 听众 吃惊 喝酒 做饭 说明 小说 和平 年级
"""
"""Chinese words that hold a function word's character and must not be cut there."""

KOREAN_PARTICLES = """
    에서는 에게서 이라고 에서 에게 한테 까지 부터 처럼 보다 으로 이랑 은 는 이 가 을 를 에 도 로 의 와 과 만 랑
"""
"""Endings that Korean hangs onto a noun, longest first."""

NAMING_WORDS = _table("""
Ukrainian: я ти він вона ми ви не на що як це і й та у в з до дуже але мені мене є так ні де коли
Arabic: في من أن هذا هذه ما على إلى لا هل أنا أنت كان مع يا ماذا هو هي لم كل نعم كيف أحب عن
Persian: من در را از است که به این آن تو با و دارم می چه هم نیست خیلی شما بود یک ما برای
Hindi: है हैं में मैं और को यह वह हूँ हूं नहीं क्या था थी थे रहा रही से मुझे आप तुम भी का की के
""")
"""Of languages without function words above: words to know them by."""

OTHERS = _table("""
Polish: a nie to jest się na że co jak ale tak czy mam za bardzo tylko ja mi już jestem w z i o do po
Czech: a je to se na že co jak ale tak jsem si ne ano už jsi v s z i o tom po není mám máš být ten
Slovak: a je to sa na že čo ako ale tak som si nie áno už v s z i o do po mám máš byť ten
Hungarian: a az és nem hogy is egy van meg már csak mit ez de ha én te nagyon ezt vagyok
Finnish: on ja ei se että en minä olen mutta niin kun mitä hän sinä oli tämä myös kuin
Swedish: det är jag och att en som på med för inte du har vi ett till av om den var kan vad så i
Danish: det er jeg og at en som på med for ikke du har vi et til af av om den var kan hvad hva så i
Icelandic: og að er ég það í á við ekki sem um þú hann fyrir með en var mér
Romanian: nu și si să sa este e în in mă ma te de la cu pe am ce un o eu dar mai sunt care asta din
Turkish: bir bu ve ben da de ne için çok sen var mı mi o ama gibi daha değil benim seni
Vietnamese: tôi là không có và của bạn cho một được anh em này trong với đi thì mà rất
Croatian: je da se u na ne što sam to i za od ja ali si su kao smo ti li samo sve gdje bi moj moja
Slovenian: je in da se na ne kaj sem to za ki pa si so kot v z ali mi ti tudi po bi
Lithuanian: ir tai kad aš yra ne į su bet ar kaip tu mes jis labai man buvo po iš
Latvian: un ir es ka nav tas par ar no bet tu kā mēs viņš ļoti man kas pa uz
Estonian: on ja ei see et ma sa mis aga nii oli kui ta me väga ning ka mul
Catalan: és i el la els les de que no un una per amb en al del però molt què això jo si meva a em mi del
Galician: é e o a os as de que non un unha por con en do da no na pero moi eu ti xa se pola onde está estou
Basque: da eta ez du naiz dut zer bat ere baina oso nire zure zara dira hau
Welsh: yn y yr i o a mae ar ei fy dw wyt beth ond nid oes hi chi fi roedd ti
Irish: an is tá na agus go ar sé sí mé tú le do ní bhí ach cad sin seo liom ag
Albanian: të dhe një në me nuk është për që i e ka unë ti po çfarë jam shumë
Tagalog: ang ng sa na ay ako ko mga ka mo hindi ano si at po naman kung ito siya kong
Malay: awak boleh nak tak sahaja kerana esok bandar macam ialah saya yang dan di itu ini tidak apa
Swahili: na ni ya wa kwa mimi wewe hii hiyo sana lakini nini si kuwa yangu langu za la katika
Afrikaans: ek jy nie baie hulle sy hy vir sal gaan die het van wat en in is ons dit my om te daar goed waar
Esperanto: mi vi estas kaj la ne en al de kio tio ĉu tre sed li ŝi ni por kun
Latin: et est non in ad cum sed ego quid hoc ut tu si mihi sum esse qui quod ex per
Haitian Creole: mwen ou li nan pou pa yo ki se sa m w ap te ak yon la gen an
Javanese: aku kowe iku iki ora ing lan sing arep wis karo kuwi
Luxembourgish: ech du net ass an dat mat op fir och wat hunn mir gär ganz der
Frisian: it ik haw is yn de en dy mei my wie fan net in ast
Hausa: ina ne ce da a ya ta na ba yana kai ka za mai cikin wannan
Bulgarian: да се е на не това и за какво с от ще съм си са но аз ти много те го по в из
Serbian: да је се у на не то и шта за ја али си су сам од као ми
Macedonian: да е се на не тоа и за што како од ќе сум си ти многу го ја
Mongolian: би чи энэ тэр юу нь бол вэ уу их байна гэж надад
Marathi: आहे आणि मी तू ते हे मला नाही का काय की होते आहेस खूप तो ती
Nepali: छ छन् म मलाई र यो त्यो को मा हो हुन् के छौ तिमी धेरै छैन
""")
"""Languages without a name here: what is in one of them is in none of the named."""

ALPHABETS = _table("""
English: éèêëïöüçñàâ
German: äöüßéèà
French: àâæçéèêëîïôœùûüÿñ
Italian: àèéìíîòóùú
Spanish: áéíñóúüç
Portuguese: áâãàçéêíóôõúüè
Indonesian: éè
Dutch: áéèëêïíóöüúçà
Russian: абвгдеёжзийклмнопрстуфхцчшщъыьэюя
Ukrainian: абвгґдеєжзиіїйклмнопрстуфхцчшщьюя
Arabic: ءآأؤإئابةتثجحخدذرزسشصضطظعغفقكلمنهوىيًٌٍَُِّْ
Persian: ءآأؤئابپتثجچحخدذرزژسشصضطظعغفقکگلمنوهیيكةًّ
Hebrew: אבגדהוזחטיךכלםמןנסעףפץצקרשת
""")
"""Letters beside a to z; a word with any other is a word of another language."""

TELLTALE_LETTERS = _table("""
German: äöüß
French: çœêèùûîïëâ
Italian: òìùèà
Spanish: ñ¿¡íóúá
Portuguese: ãõçêâ
Russian: ыэъё
Ukrainian: іїєґ
Persian: پچژگکی
""")
"""Letters that only some of the languages of one script use."""
